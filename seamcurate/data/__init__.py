"""Sources: files, folders and the Hub as rows of a prompt, a response and a reference."""
