"""What the entry points do, callable: one function per tool, from composed config to result."""
