"""What people say of data and responses: votes, flags and notes by row, their agreement, and what is exported of them."""
