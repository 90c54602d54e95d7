#!/bin/sh
exec /opt/portcullis/bin/post-job
