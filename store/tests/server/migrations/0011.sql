-- What a server of version 11 wrote: the reusable workflow that a verified job ran.
UPDATE jobs SET job_workflow_ref = 'octo/shared/.github/workflows/build.yml@refs/tags/v1' WHERE id = '0197aaaaaaaa7000800000000000000a';
