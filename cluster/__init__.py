"""The only package that knows the whole: configuration, command line, training loop and fleet."""
