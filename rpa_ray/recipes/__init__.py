"""What a cell needs, named by its content, before anything is made."""
