package io.palisade.plugin.internal;

import io.palisade.plugin.Headers;
import io.palisade.plugin.Request;
import io.palisade.plugin.Response;

/** The head of a response as it came from the host. */
record WireResponse(Request request, int status, Headers headers) implements Response {}
