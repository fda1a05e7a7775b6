"""What users of verl and TRL bring along, written as those projects' documentation writes it."""
