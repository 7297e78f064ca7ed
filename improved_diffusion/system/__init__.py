"""What is asked of the machine: files, processors, memory, number formats."""
