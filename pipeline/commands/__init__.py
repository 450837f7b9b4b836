"""One file, one command of `pipeline`: main(arguments) returns the exit status."""
