package io.palisade.plugin;

import java.util.List;
import java.util.stream.Collectors;

/** A configuration is wrong. Says where and why, for the person who wrote it. */
public final class ConfigException extends RuntimeException {

  private static final long serialVersionUID = 1;

  /** What is wrong. */
  private final transient List<Problem> problems;

  /**
   * One thing is wrong.
   *
   * @param path where, as keys and indexes joined by dots ({@code "allow.0"}); empty for the whole configuration
   * @param message what is wrong and what would be right, one sentence
   */
  public ConfigException(String path, String message) {
    this(List.of(new Problem(path, message)));
  }

  /**
   * Several things are wrong; an operator likes to see them all at once.
   *
   * @param problems all that is wrong, at least one
   * @throws IllegalArgumentException if there is none
   */
  public ConfigException(List<Problem> problems) {
    super(problems.stream().map(Problem::toString).collect(Collectors.joining("; ")));
    if (problems.isEmpty()) {
      throw new IllegalArgumentException("a ConfigException needs at least one problem");
    }
    this.problems = List.copyOf(problems);
  }

  /**
   * What is wrong.
   *
   * @return at least one problem
   */
  public List<Problem> problems() {
    return problems;
  }

  /**
   * One thing that is wrong.
   *
   * @param path where, as keys and indexes joined by dots; empty for the whole configuration
   * @param message what is wrong and what would be right, one sentence
   */
  public record Problem(String path, String message) {
    @Override
    public String toString() {
      return path.isEmpty() ? message : path + ": " + message;
    }
  }
}
