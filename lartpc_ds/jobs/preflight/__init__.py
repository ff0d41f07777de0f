"""Whether a job will start on its hosts, asked before anything runs for long."""
