"""One file a method, at work before the attack."""
