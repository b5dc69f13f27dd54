/** Small plugins to read, run and copy. */
package io.palisade.samples;
