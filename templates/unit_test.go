package templates

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/unit"
)

var update = flag.Bool("update", false, "rewrite the golden files")

func exampleUnit() MusterdUnit {
	return MusterdUnit{
		Cluster: "prod", Binary: "/usr/local/bin/musterd", User: "muster", Group: "muster",
		DataDir: "/var/lib/muster", Config: "/etc/muster", Environment: "/etc/muster/restore.env",
		Args: []Argument{
			{Flag: "name", Value: "controller-0"},
			{Flag: "advertise-client-urls", Value: "https://[2001:db8::10]:2379"},
			{Flag: "initial-cluster", Value: "controller-0=https://[2001:db8::10]:2380,controller-1=https://10.240.0.11:2380"},
			{Flag: "client-cert-auth"},
			{Flag: "pre-vote", Value: "true", Joined: true},
		},
	}
}

func TestMusterdUnit(t *testing.T) {
	elsewhere := exampleUnit()
	elsewhere.DataDir = "/srv/muster"
	nested := exampleUnit()
	nested.DataDir = "/var/lib/muster/prod"
	for name, u := range map[string]MusterdUnit{"usual": exampleUnit(), "elsewhere": elsewhere, "nested": nested} {
		t.Run(name, func(t *testing.T) {
			text, err := u.Render()
			if err != nil {
				t.Fatal(err)
			}
			compare(t, filepath.Join("testdata", name+".service"), text)
			options := deserialize(t, text)
			if got := options["Service/ExecStart"]; len(got) != 1 || !strings.HasPrefix(got[0], u.Binary+" ") {
				t.Errorf("ExecStart is %q", got)
			}
			for key, want := range map[string]string{
				"Service/Type":            "notify",
				"Service/NotifyAccess":    "main",
				"Service/TimeoutStartSec": "0",
				"Service/Restart":         "on-failure",
				"Service/User":            "muster",
				"Service/ProtectSystem":   "strict",
				"Install/WantedBy":        "multi-user.target",
			} {
				if got := options[key]; !slices.Equal(got, []string{want}) {
					t.Errorf("%s is %q, want %q", key, got, want)
				}
			}
			if u.StateDirectory() == "" && !slices.Equal(options["Service/ReadWritePaths"], []string{u.DataDir}) {
				t.Errorf("the data directory cannot be written: %q", options["Service/ReadWritePaths"])
			}
		})
	}
}

// deserialize returns the values of each "Section/Option" in order.
func deserialize(t *testing.T, text []byte) map[string][]string {
	t.Helper()
	options, err := unit.DeserializeOptions(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	values := map[string][]string{}
	for _, o := range options {
		key := o.Section + "/" + o.Name
		values[key] = append(values[key], o.Value)
	}
	return values
}

func TestArgumentsAreOnTheirOwnLines(t *testing.T) {
	text, err := exampleUnit().Render()
	if err != nil {
		t.Fatal(err)
	}
	for _, line := range []string{
		"  --advertise-client-urls https://[2001:db8::10]:2379 \\\n",
		"  --initial-cluster controller-0=https://[2001:db8::10]:2380,controller-1=https://10.240.0.11:2380 \\\n",
		"  --client-cert-auth \\\n",
		"  --pre-vote=true\n",
	} {
		if !bytes.Contains(text, []byte(line)) {
			t.Errorf("no line %q in\n%s", line, text)
		}
	}
}

func TestQuoteArgument(t *testing.T) {
	for _, c := range []struct {
		argument Argument
		want     string // "" for a refusal
	}{
		{Argument{Flag: "name", Value: "a"}, `--name a`},
		{Argument{Flag: "cors", Value: "", Joined: true}, `--cors=`},
		{Argument{Flag: "cors", Value: "a b", Joined: true}, `"--cors=a b"`},
		{Argument{Flag: "cors", Value: "*", Joined: true}, `"--cors=*"`},
		{Argument{Flag: "x", Value: `50% of $HOME`}, `--x "50%% of $$HOME"`},
		{Argument{Flag: "x", Value: `say "\n"`}, `--x "say \"\\n\""`},
		{Argument{Flag: "x", Value: `it's`}, `--x "it's"`},
		{Argument{Flag: "x", Value: "a;b"}, `--x "a;b"`},
		{Argument{Flag: "x", Value: "a\nExecStartPre=/bin/false"}, ""},
		{Argument{Flag: "x", Value: "é"}, ""},
		{Argument{Flag: "x", Value: "\x00"}, ""},
	} {
		got, err := quoteArgument(c.argument)
		if (err != nil) != (c.want == "") || err == nil && got != c.want {
			t.Errorf("%+v: got %s, error %v, want %s", c.argument, got, err, c.want)
		}
	}
	u := exampleUnit()
	u.Args = append(u.Args, Argument{Flag: "x", Value: "a\nb"})
	if _, err := u.Render(); err == nil {
		t.Error("a unit with a line break in an argument was rendered")
	}
}

// TestSystemdUnderstandsTheUnit lets systemd itself read the unit. The server
// is replaced by a program that every machine has.
func TestSystemdUnderstandsTheUnit(t *testing.T) {
	u := exampleUnit()
	u.Binary = "/bin/true"
	u.Args = append(u.Args, Argument{Flag: "odd", Value: `50% of "$HOME"`})
	out, err := exec.Command(systemdAnalyze(t), "verify", "--man=no", unitFile(t, u)).CombinedOutput()
	if err != nil || len(out) > 0 {
		t.Errorf("systemd-analyze verify: %v\n%s", err, out)
	}
}

func systemdAnalyze(t *testing.T) string {
	t.Helper()
	path, err := exec.LookPath("systemd-analyze")
	if err != nil {
		t.Fatal("systemd-analyze is missing; install it: apt-get install systemd")
	}
	return path
}

func unitFile(t *testing.T, u MusterdUnit) string {
	t.Helper()
	text, err := u.Render()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "musterd.service")
	if err := os.WriteFile(path, text, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// maxExposure is the most that systemd's own judgement may come to, in tenths
// on a scale from 0 (safe) to 10.
const maxExposure = "15"

func TestExposure(t *testing.T) {
	analyze, path := systemdAnalyze(t), unitFile(t, exampleUnit())
	// With --threshold the command fails when the unit is more exposed.
	out, err := exec.Command(analyze, "security", "--offline=true", "--no-pager", "--threshold="+maxExposure, path).CombinedOutput()
	if err != nil {
		t.Errorf("more exposed than %s tenths: %v\n%s", maxExposure, err, out)
	}
	report, err := exec.Command(analyze, "security", "--offline=true", "--no-pager", "--json=short", path).Output()
	var findings []struct {
		Name string `json:"json_field"`
	}
	if err != nil || json.Unmarshal(report, &findings) != nil || len(findings) < 50 {
		t.Errorf("the report has %d findings, error %v: the judgement above is not to be trusted\n%s", len(findings), err, report)
	}
}

func compare(t *testing.T, golden string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("differs from %s; -update rewrites it\n%s", golden, got)
	}
}
