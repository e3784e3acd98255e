"""Which method trains better: experiments that can be run again one by one."""
