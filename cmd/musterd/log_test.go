package main

import (
	"bytes"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/coreos/go-systemd/v22/journal"
)

// logTo opens the log that the flags ask for.
func logTo(t *testing.T, args ...string) (logger *slog.Logger, stdout, stderr *bytes.Buffer) {
	t.Helper()
	o, err := parse(args, nil)
	if err != nil {
		t.Fatal(err)
	}
	stdout, stderr = &bytes.Buffer{}, &bytes.Buffer{}
	logger, closeFiles, err := o.log.open(stdout, stderr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := closeFiles(); err != nil {
			t.Error(err)
		}
	})
	return logger, stdout, stderr
}

// A line has what etcd's has, under the same names.
func TestJSONLines(t *testing.T) {
	logger, _, stderr := logTo(t)
	logger.Warn("slow", "took", 1500*time.Millisecond)
	var line map[string]string
	if err := json.Unmarshal(stderr.Bytes(), &line); err != nil {
		t.Fatalf("%q: %v", stderr, err)
	}
	if line["level"] != "warn" || line["msg"] != "slow" || line["took"] != "1.5s" || !regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}(Z|[+-]\d{4})$`).MatchString(line["ts"]) {
		t.Errorf("the line is %s", stderr)
	}
}

func TestOutputs(t *testing.T) {
	dir := t.TempDir()
	one, two := filepath.Join(dir, "one.log"), filepath.Join(dir, "two.log")
	logger, stdout, stderr := logTo(t, "--log-format=console", "--log-level=debug", "--log-outputs=stdout,stderr,"+one+","+two)
	logger.Debug("hello")
	for name, text := range map[string]string{"stdout": stdout.String(), "stderr": stderr.String(), "one": read(t, one), "two": read(t, two)} {
		if !strings.Contains(text, "level=DEBUG msg=hello") {
			t.Errorf("%s has %q", name, text)
		}
	}
	logger, _, _ = logTo(t, "--log-outputs="+one)
	logger.Info("again")
	if text := read(t, one); !strings.Contains(text, "hello") || !strings.Contains(text, "again") {
		t.Errorf("a file is not appended to: %q", text)
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func TestLevels(t *testing.T) {
	for level, want := range map[string]string{"debug": "dIWE", "info": "IWE", "warn": "WE", "error": "E", "panic": "", "fatal": ""} {
		logger, _, stderr := logTo(t, "--log-level="+level, "--log-format=console")
		logger.Debug("d")
		logger.Info("I")
		logger.Warn("W")
		logger.Error("E")
		var got string
		for _, line := range regexp.MustCompile(`msg=(.)`).FindAllStringSubmatch(stderr.String(), -1) {
			got += line[1]
		}
		if got != want {
			t.Errorf("%s lets %q through, want %q", level, got, want)
		}
	}
}

func TestRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "musterd.log")
	logger, _, _ := logTo(t, "--log-outputs="+path, "--enable-log-rotation", `--log-rotation-config-json={"maxsize": 1}`)
	for range 3 {
		logger.Info(strings.Repeat("x", 600<<10))
	}
	files, err := os.ReadDir(filepath.Dir(path))
	if err != nil || len(files) < 2 {
		t.Errorf("there are %d files after writing more than one may hold (%v)", len(files), err)
	}
}

func TestOutputsThatDoNotWork(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"default and more":   {[]string{"--log-outputs=default,stdout"}, `multi logoutput for "default" is not supported yet`},
		"journal and more":   {[]string{"--log-outputs=systemd/journal,stderr"}, "systemd/journal does not go with another output"},
		"rotate what":        {[]string{"--enable-log-rotation"}, "--log-outputs requires a single file path when --log-rotate-config-json is defined"},
		"rotate two":         {[]string{"--enable-log-rotation", "--log-outputs=/a,/b"}, "--log-outputs requires a single file path"},
		"rotate how":         {[]string{"--enable-log-rotation", "--log-outputs=/a", "--log-rotation-config-json={"}, "improperly formatted log rotation config"},
		"rotate in what way": {[]string{"--enable-log-rotation", "--log-outputs=/a", `--log-rotation-config-json={"maxsize":"x"}`}, "invalid log rotation config"},
		"no such directory":  {[]string{"--log-outputs=/no/such/file"}, "--log-outputs: open /no/such/file"},
	} {
		t.Run(name, func(t *testing.T) {
			o, err := parse(test.args, nil)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := o.log.open(nil, nil); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %q", err, test.want)
			}
		})
	}
}

// The journal is told how heavy a line is.
func TestJournal(t *testing.T) {
	var sent []string
	o := defaultLog()
	o.format = "console"
	logger := slog.New(newJournalHandler(o.handler, func(message string, priority journal.Priority, _ map[string]string) error {
		sent = append(sent, string('0'+rune(priority))+message[strings.Index(message, " msg"):])
		return nil
	}))
	logger.Debug("not this")
	logger.Info("a", "k", "v")
	logger.With("who", "me").WithGroup("g").Warn("b", "k", "v")
	logger.Error("c")
	if got, want := strings.Join(sent, ";"), `6 msg=a k=v;4 msg=b who=me g.k=v;3 msg=c`; got != want {
		t.Errorf("sent %s, want %s", got, want)
	}
}
