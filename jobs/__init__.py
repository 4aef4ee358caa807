"""The life of a job: ids, states, records, the store. The ground floor."""
