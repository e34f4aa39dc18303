"""What tests share: clients, servers, fakes, faults, hostile files."""
