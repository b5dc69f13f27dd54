package io.palisade.samples;

import static io.palisade.plugin.Decision.allow;
import static io.palisade.plugin.Decision.deny;
import static org.junit.jupiter.api.Assertions.assertEquals;
import static org.junit.jupiter.api.Assertions.assertTrue;

import io.palisade.plugin.internal.HostSide;
import io.palisade.plugin.testing.RequestBuilder;
import java.io.StringWriter;
import java.nio.file.Files;
import java.nio.file.Path;
import java.util.List;
import java.util.Map;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import javax.tools.JavaCompiler;
import javax.tools.StandardJavaFileManager;
import javax.tools.ToolProvider;
import org.junit.jupiter.api.Test;
import org.junit.jupiter.api.io.TempDir;

/** The plugin in the README is one. */
class ReadmeIT {

  private static final Pattern EXAMPLE =
      Pattern.compile("```java\\n(.*?public final class (\\w+) .*?)```", Pattern.DOTALL);

  @TempDir private Path dir;

  @Test
  void the_example_compiles_and_serves() throws Exception {
    Matcher example =
        EXAMPLE.matcher(Files.readString(RunningPlugin.target().resolve("../../README.md")));
    assertTrue(example.find());
    Path source = Files.writeString(dir.resolve(example.group(2) + ".java"), example.group(1));
    compile(source);
    Path tls = Files.createDirectory(dir.resolve("tls"));
    Files.copy(RunningPlugin.target().resolve("test-classes/pem/one.cert.pem"), tls.resolve("cert.pem"));
    Files.copy(RunningPlugin.target().resolve("test-classes/pem/one.key.pem"), tls.resolve("key.pem"));
    try (RunningPlugin plugin = RunningPlugin.main(dir, dir, example.group(2))) {
      HostSide host =
          plugin.configured(dir, Map.of("allow", List.of("admin"), "dir", tls.toString()));
      assertEquals(deny(403, "who are you?"), host.check(RequestBuilder.get("/").build()));
      assertEquals(
          allow().setHeader("x-auth", "ok"),
          host.check(RequestBuilder.get("/").header("x-user", "admin").build()));
    }
  }

  private void compile(Path source) throws Exception {
    JavaCompiler compiler = ToolProvider.getSystemJavaCompiler();
    String classPath = RunningPlugin.target().resolve("header-auth.jar").toString();
    StringWriter messages = new StringWriter();
    try (StandardJavaFileManager files = compiler.getStandardFileManager(null, null, null)) {
      List<String> options =
          List.of("-Xlint:all", "-Werror", "-d", dir.toString(), "-cp", classPath);
      boolean compiled =
          compiler
              .getTask(messages, files, null, options, null, files.getJavaFileObjects(source))
              .call();
      assertTrue(compiled, messages.toString());
    }
  }
}
