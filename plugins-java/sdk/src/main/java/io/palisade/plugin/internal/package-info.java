/** How the SDK works inside. Not part of the API; may change with any release. */
package io.palisade.plugin.internal;
