"""Writes what people read of a run: records, timelines, traces, trackers, live status."""
