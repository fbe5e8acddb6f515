"""What compares this project's worker with Orcheo's stock worker: workflows, servers they call, and what runs leave."""
