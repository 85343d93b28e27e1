package main

import "testing"

func TestRemovalText(t *testing.T) {
	hosts := []string{"a", "b", "c", "d"}
	got := removalText(hosts, map[string][]string{
		"a": {"/x", "/y"}, "c": {"/x", "/y"}, "d": {"/x", "/data AND ALL DATA IN IT"},
	})
	want := `  a, c:
    /x
    /y
  d:
    /x
    /data AND ALL DATA IN IT
`
	if got != want {
		t.Errorf("got\n%swant\n%s", got, want)
	}
}
