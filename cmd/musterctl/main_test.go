package main

import (
	"testing"

	"github.com/rogpeppe/go-internal/testscript"
)

// TestMain lets the scripts run this program under each of its names.
func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"musterctl": main,
		"etcdctl":   main,
		"etcdutl":   main,
	})
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{Dir: "testdata/script"})
}
