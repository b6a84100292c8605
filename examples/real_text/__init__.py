"""Which prompts a reward model misjudges, by people's verdicts on real text."""
