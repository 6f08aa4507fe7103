"""Problems that are simulated here, so that the truth is known."""
