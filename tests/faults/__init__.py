"""The fault suite: real processes and servers, a seeded workload under seeded faults, and a checker of what is left."""
