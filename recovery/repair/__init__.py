"""Boot repair: the edits that make a replica boot on other hardware, and the record by which they are undone."""
