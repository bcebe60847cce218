"""Pure decisions about one run, and the loop that carries them out."""
