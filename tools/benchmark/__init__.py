"""How fast it is: parts of handmim against plain references, measured side by side."""
