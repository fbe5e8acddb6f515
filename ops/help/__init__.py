"""What the command says about itself: examples, the manual page, and how to type it on this host."""
