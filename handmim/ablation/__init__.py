"""Tables that compare variants: which cells there are, running them, mean and spread over seeds."""
