"""What a person looks at: file inspection, event displays, tables."""
