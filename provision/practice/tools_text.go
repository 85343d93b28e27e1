package practice

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// lines reads r line by line, of any length.
func lines(r io.Reader, f func(line string) error) error {
	b := bufio.NewReader(r)
	for {
		line, err := b.ReadString('\n')
		if line != "" {
			if err := f(strings.TrimSuffix(line, "\n")); err != nil {
				return err
			}
		}
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

func grepTool(c *call) error {
	f := c.flags()
	quiet := f.BoolP("quiet", "q", false, "")
	fixed := f.BoolP("fixed-strings", "F", false, "")
	f.BoolP("extended-regexp", "E", false, "")
	whole := f.BoolP("line-regexp", "x", false, "")
	invert := f.BoolP("invert-match", "v", false, "")
	count := f.BoolP("count", "c", false, "")
	noCase := f.BoolP("ignore-case", "i", false, "")
	f.BoolP("no-messages", "s", false, "")
	f.BoolP("no-filename", "h", false, "")
	only := f.BoolP("only-matching", "o", false, "")
	pattern := f.StringP("regexp", "e", "", "")
	most := f.IntP("max-count", "m", -1, "")
	if err := c.parse(f); err != nil {
		return err
	}
	names := f.Args()
	if !f.Changed("regexp") {
		if len(names) == 0 {
			return c.fail(exitUsage, "no pattern")
		}
		*pattern, names = names[0], names[1:]
	}
	text := *pattern
	if *fixed {
		text = regexp.QuoteMeta(text)
	}
	if *whole {
		text = "^(?:" + text + ")$"
	}
	if *noCase {
		text = "(?i)" + text
	}
	re, err := regexp.Compile(text)
	if err != nil {
		return c.fail(exitUsage, "%v", err)
	}
	found := 0
	err = c.eachInput(names, func(_ string, r io.Reader) error {
		return lines(r, func(line string) error {
			if re.MatchString(line) == *invert || found == *most {
				return nil
			}
			found++
			if *quiet || *count {
				return nil
			}
			if *only {
				line = strings.Join(re.FindAllString(line, -1), "\n")
			}
			_, err := fmt.Fprintln(c.out, line)
			return err
		})
	})
	if *count {
		fmt.Fprintln(c.out, found)
	}
	if err != nil {
		return exitStatus(exitUsage)
	}
	if found == 0 {
		return exitStatus(1)
	}
	return nil
}

// headTool and tailTool are head and tail with -n N, -N and -c N.
func headTool(c *call) error {
	n, inBytes, names, err := c.parseCount()
	if err != nil {
		return err
	}
	return c.eachInput(names, func(_ string, r io.Reader) error {
		if inBytes {
			_, err := io.CopyN(c.out, r, int64(n))
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		}
		// It ends with the n-th line, not with the input.
		b := bufio.NewReader(r)
		for range n {
			line, err := b.ReadString('\n')
			if _, err := io.WriteString(c.out, line); err != nil {
				return err
			}
			if err == io.EOF {
				return nil
			}
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func tailTool(c *call) error {
	if len(c.args) > 1 && c.args[0] == "-n" && strings.HasPrefix(c.args[1], "+") {
		first, err := strconv.Atoi(c.args[1][1:])
		if err != nil {
			return c.fail(1, "invalid number of lines: '%s'", c.args[1])
		}
		return c.eachInput(c.args[2:], func(_ string, r io.Reader) error {
			number := 0
			return lines(r, func(line string) error {
				if number++; number < first {
					return nil
				}
				_, err := fmt.Fprintln(c.out, line)
				return err
			})
		})
	}
	n, inBytes, names, err := c.parseCount()
	if err != nil {
		return err
	}
	return c.eachInput(names, func(_ string, r io.Reader) error {
		data, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		if inBytes {
			_, err := c.out.Write(data[max(0, len(data)-n):])
			return err
		}
		all := slices.Collect(strings.Lines(string(data)))
		_, err = io.WriteString(c.out, strings.Join(all[max(0, len(all)-n):], ""))
		return err
	})
}

func (c *call) parseCount() (n int, inBytes bool, names []string, err error) {
	for i, a := range c.args {
		if digits := strings.TrimPrefix(a, "-"); digits != a && strings.Trim(digits, "0123456789") == "" && digits != "" {
			c.args[i] = "-n" + digits
		}
	}
	f := c.flags()
	count := f.StringP("lines", "n", "10", "")
	size := f.StringP("bytes", "c", "", "")
	if err := c.parse(f); err != nil {
		return 0, false, nil, err
	}
	text := *count
	if *size != "" {
		text, inBytes = *size, true
	}
	if n, err = strconv.Atoi(text); err != nil || n < 0 {
		return 0, false, nil, c.fail(1, "practice host: only a count of 0 and more is known, not '%s'", text)
	}
	return n, inBytes, f.Args(), nil
}

// cutTool is cut -d D -f LIST and cut -c LIST; LIST is N, N-, N-M or a list.
func cutTool(c *call) error {
	f := c.flags()
	delimiter := f.StringP("delimiter", "d", "\t", "")
	fields := f.StringP("fields", "f", "", "")
	characters := f.StringP("characters", "c", "", "")
	if err := c.parse(f); err != nil {
		return err
	}
	list, split, join := *fields, func(l string) []string { return strings.Split(l, *delimiter) }, *delimiter
	if *characters != "" {
		list, split, join = *characters, func(l string) []string { return strings.Split(l, "") }, ""
	}
	return c.eachInput(f.Args(), func(_ string, r io.Reader) error {
		return lines(r, func(line string) error {
			parts := split(line)
			if *characters == "" && len(parts) == 1 {
				_, err := fmt.Fprintln(c.out, line)
				return err
			}
			var kept []string
			for i, p := range parts {
				if inList(list, i+1) {
					kept = append(kept, p)
				}
			}
			_, err := fmt.Fprintln(c.out, strings.Join(kept, join))
			return err
		})
	})
}

func inList(list string, n int) bool {
	for item := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(item, "-")
		low, err := strconv.Atoi(from)
		if err != nil {
			low = 1
		}
		high, err := strconv.Atoi(to)
		if err != nil {
			high = int(^uint(0) >> 1)
		}
		if !isRange {
			high = low
		}
		if n >= low && n <= high {
			return true
		}
	}
	return false
}

func wcTool(c *call) error {
	f := c.flags()
	countLines := f.BoolP("lines", "l", false, "")
	countWords := f.BoolP("words", "w", false, "")
	countBytes := f.BoolP("bytes", "c", false, "")
	if err := c.parse(f); err != nil {
		return err
	}
	all := !*countLines && !*countWords && !*countBytes
	return c.eachInput(f.Args(), func(name string, r io.Reader) error {
		data, err := io.ReadAll(r)
		if err != nil {
			return err
		}
		var words []string
		if *countLines || all {
			words = append(words, fmt.Sprint(bytes.Count(data, []byte("\n"))))
		}
		if *countWords || all {
			words = append(words, fmt.Sprint(len(bytes.Fields(data))))
		}
		if *countBytes || all {
			words = append(words, fmt.Sprint(len(data)))
		}
		if name != "-" {
			words = append(words, name)
		}
		_, err = fmt.Fprintln(c.out, strings.Join(words, " "))
		return err
	})
}

func sha256sumTool(c *call) error {
	f := c.flags()
	check := f.Bool("check", false, "")
	if err := c.parse(f); err != nil {
		return err
	}
	if *check {
		return c.fail(1, "practice host: --check is not known")
	}
	return c.eachInput(f.Args(), func(name string, r io.Reader) error {
		h := sha256.New()
		if _, err := io.Copy(h, r); err != nil {
			return err
		}
		_, err := fmt.Fprintf(c.out, "%x  %s\n", h.Sum(nil), name)
		return err
	})
}

// gzipTool decompresses, to standard output or in place.
func gzipTool(c *call) error {
	f := c.flags()
	decompress := f.BoolP("decompress", "d", false, "")
	toStdout := f.BoolP("stdout", "c", false, "")
	f.BoolP("force", "f", false, "")
	f.BoolP("quiet", "q", false, "")
	if err := c.parse(f); err != nil {
		return err
	}
	if !*decompress {
		return c.fail(1, "practice host: only gzip -d is known")
	}
	return c.eachInput(f.Args(), func(name string, r io.Reader) error {
		z, err := gzip.NewReader(r)
		if err != nil {
			return c.fail(1, "%s: not in gzip format", name)
		}
		if *toStdout || name == "-" {
			if _, err := io.Copy(struct{ io.Writer }{c.out}, z); err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			return z.Close()
		}
		target := strings.TrimSuffix(c.path(name), ".gz")
		if target == c.path(name) {
			return c.fail(2, "%s: unknown suffix -- ignored", name)
		}
		out, err := c.files.create(target, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o666)
		if err != nil {
			return err
		}
		_, err = io.Copy(struct{ io.Writer }{out}, z)
		if err := errors.Join(err, out.Close(), z.Close()); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		return c.files.remove(c.path(name), false)
	})
}

func teeTool(c *call) error {
	f := c.flags()
	appending := f.BoolP("append", "a", false, "")
	if err := c.parse(f); err != nil {
		return err
	}
	flags := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if *appending {
		flags = os.O_WRONLY | os.O_CREATE | os.O_APPEND
	}
	writers := []io.Writer{c.out}
	var files []*file
	for _, name := range f.Args() {
		if name == "/dev/null" {
			continue
		}
		out, err := c.files.create(c.path(name), flags, 0o666)
		if err != nil {
			return err
		}
		files, writers = append(files, out), append(writers, out)
	}
	_, err := io.Copy(io.MultiWriter(writers...), c.in)
	for _, out := range files {
		err = errors.Join(err, out.Close())
	}
	return err
}
