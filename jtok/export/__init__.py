"""What leaves jtok: weights under other libraries' names, programs that need only JAX, and their model cards."""
