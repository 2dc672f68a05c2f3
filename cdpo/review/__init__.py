"""What people say of data and responses: votes, flags and notes by row, how far they agree, and what is exported."""
