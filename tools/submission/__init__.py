"""From runs of this project to a folder that can be handed in to MLPerf."""
