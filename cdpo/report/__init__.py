"""What finished steps measured: read, averaged over seeds, compared, shown."""
