"""Which machines there are and how to reach them."""
