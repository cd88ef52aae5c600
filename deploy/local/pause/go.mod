module penstock.dev/deploy/local/pause

go 1.24.0
