"""Taking over from Orcheo's own worker."""
