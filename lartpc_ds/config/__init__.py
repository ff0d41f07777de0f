"""What a user asks for, checked, and the folder that keeps it."""
