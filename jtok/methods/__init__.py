"""One file a paper. A method file never imports another: what two share is a primitive in `jtok`."""
