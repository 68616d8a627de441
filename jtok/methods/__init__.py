"""One file per paper. Method files never import each other: what two of them share is a primitive in `jtok`."""
