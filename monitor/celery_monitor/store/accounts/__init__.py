"""Who may sign in, and what proves it: users, sessions of browsers, API tokens."""
