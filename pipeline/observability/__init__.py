"""What a run writes for people: records, timelines, traces, trackers, live status."""
