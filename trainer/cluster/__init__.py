"""The same run on many processes and machines. Ray is imported here and nowhere else."""
