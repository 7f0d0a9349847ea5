"""Tables that compare variants: planning and making their runs, mean and spread over seeds."""
