"""Where the values of a training go, and in which columns."""
