"""What a content calendar is: its file, its rows, its budget, its summary."""
