"""The run folder: its files, who writes and who reads them."""
