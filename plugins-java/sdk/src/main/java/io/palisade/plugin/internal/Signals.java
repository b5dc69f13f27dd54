package io.palisade.plugin.internal;

import java.lang.reflect.InvocationTargetException;
import java.lang.reflect.Proxy;

/**
 * Signals of the operating system, by way of {@code sun.misc.Signal}. It is in the documented module
 * {@code jdk.unsupported} (JEP 260), but the compiler warns of it in a way that can't be suppressed, so it is called by
 * reflection. Where it is missing, signals do what the JVM does with them.
 */
final class Signals {

  private Signals() {}

  /** Runs an action on a signal in place of what the JVM does. */
  static void handle(String name, Runnable action) {
    try {
      Class<?> signal = Class.forName("sun.misc.Signal");
      Class<?> handler = Class.forName("sun.misc.SignalHandler");
      Object proxy =
          Proxy.newProxyInstance(
              Signals.class.getClassLoader(),
              new Class<?>[] {handler},
              (self, method, arguments) -> {
                if (method.getName().equals("handle")) {
                  action.run();
                }
                return null;
              });
      signal
          .getMethod("handle", signal, handler)
          .invoke(null, signal.getConstructor(String.class).newInstance(name), proxy);
    } catch (InvocationTargetException e) {
      // The JVM keeps the signal to itself (java -Xrs), or the platform has none of this name.
    } catch (ReflectiveOperationException e) {
      // A runtime without jdk.unsupported.
    }
  }
}
